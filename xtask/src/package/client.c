/* Uses /dev/kvm as a VMM does, as far as it takes to know whether there is one. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
    int filter = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER);
    printf("version %d, filter %d, vm %d\n", version, filter, ioctl(kvm, KVM_CREATE_VM, 0) >= 0);
    return 0;
}
