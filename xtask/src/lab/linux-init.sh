#!/bin/busybox sh
# The first program of a Linux that runs inside the lab's. It tells on its console what the machine is like at the end
# (lines that begin with "state:"), tries the MSR that the kernel's command line names (unknown=INDEX), and turns it off.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
insmod /modules/msr.ko
exec </dev/null >/dev/console 2>&1

# rdmsr CPU INDEX: its value, or the word that says why there is none.
rdmsr() {
    if dd if="/dev/cpu/$1/msr" bs=8 count=1 iflag=skip_bytes skip="$(($2))" of=/tmp/value status=none 2>/dev/null; then
        echo "0x$(od -An -tx8 /tmp/value | tr -d ' ')"
    else
        echo "#GP"
    fi
}

mkdir -p /tmp
echo "guest: user space"
grep -Ev '^(cpu MHz|bogomips)' /proc/cpuinfo | sed -n '/./s/^/state: /p'
echo "state: clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
for cpu in /dev/cpu/[0-9]*; do
    cpu=${cpu##*/}
    # EFER, STAR, LSTAR, FMASK; SYSENTER; PAT, the default of the MTRRs and the first; microcode; APIC base.
    for msr in 0xc0000080 0xc0000081 0xc0000082 0xc0000084 0x174 0x277 0x2ff 0x200 0x8b 0x1b; do
        echo "state: cpu $cpu, MSR $msr: $(rdmsr "$cpu" "$msr")"
    done
done
if [ -n "$unknown" ]; then
    echo "guest: MSR $unknown reads $(rdmsr 0 "$unknown")"
fi
echo "guest: end"
# The console's last line is sent before the machine goes.
sleep 0.1
poweroff -f
