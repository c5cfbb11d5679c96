#!/bin/busybox sh
# PID 1 of the guest: mounts what a Debian 12 has, loads what its netfilter and links need, runs /command, powers off.
/bin/busybox --install -s /usr/bin
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/net
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
echo 1 >/proc/sys/kernel/printk
ip link set lo up
# Some are not loaded by being asked for, and the others not by two at once.
for module in tun veth bridge wireguard sch_ingress cls_bpf; do modprobe "$module"; done
sh -e /command
code=$?
echo "hawser-vm: exit $code"
poweroff -f
