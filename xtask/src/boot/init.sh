#!/bin/busybox sh
# The first program of a guest that is booted to see what its kernel does: it says that it is there, tells what the kernel
# traced of itself if that was asked for (trace_event= on the command line), and turns the machine off.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "guest: user space, $(nproc) processors"
if grep -q trace_event= /proc/cmdline; then
    mount -t tracefs tracefs /sys/kernel/tracing
    # "read_msr: c0000080, value d01", perhaps with " #GP" behind it
    grep -o '[a-z]*_msr: [0-9a-f]*' /sys/kernel/tracing/trace | sort | uniq -c | sed 's/^/traced: /'
fi
echo "guest: end"
poweroff -f
