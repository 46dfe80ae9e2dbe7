# Makes real Debian disks. Runs in a mount namespace of its own (`unshare --mount`), so that nothing stays mounted.
# Usage: sh guest.sh FOLDER SUITE SOURCES STEP...
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
folder=$1 suite=$2 sources=$3
shift 3
cd "$folder"
mkdir -p root
install="apt-get install -qq -y --no-install-recommends"
kernel=linux-image-cloud-amd64,systemd-sysv,udev,qemu-guest-agent

# fresh DISK PACKAGES: a partition with ext4 and an installed system.
fresh() {
    truncate -s "$size" "$1"
    printf 'label: dos\nstart=2048,type=83,bootable\n' | sfdisk --quiet "$1"
    mkfs.ext4 -q -F -E offset=1048576 "$1" $(( (size - 1048576) / 1024 ))k
    mount -o loop,offset=1048576 "$1" root
    mmdebstrap --quiet --variant=minbase --include="$2" "$suite" root "$sources" > log 2>&1 || { tail log >&2; exit 1; }
    leave
}

# enter DISK: from here on `inside COMMAND` runs in that system.
enter() {
    mount -o loop,offset=1048576 "$1" root
    mount -t proc proc root/proc
    mount --rbind /dev root/dev
    mount -t tmpfs tmpfs root/run
    mv root/etc/resolv.conf root/etc/resolv.conf.own 2> /dev/null || true
    cp -L /etc/resolv.conf root/etc/resolv.conf
    printf '#!/bin/sh\nexit 101\n' > root/usr/sbin/policy-rc.d
    chmod 755 root/usr/sbin/policy-rc.d
    inside apt-get update -qq
}

inside() {
    chroot root "$@" > log 2>&1 < /dev/null || { tail -n 40 log >&2; exit 1; }
}

leave() {
    if mountpoint -q root/proc; then
        inside apt-get clean
        rm -f root/usr/sbin/policy-rc.d root/etc/resolv.conf
        mv root/etc/resolv.conf.own root/etc/resolv.conf 2> /dev/null || true
    fi
    umount -R root
}

# changed NEW OLD BASE: from here on NEW.qcow2 holds what NEW.raw has other than OLD.raw, which is what BASE.qcow2 shows.
changed() {
    qemu-img create -q -f qcow2 -F raw -b "$1.raw" "$1.qcow2"
    qemu-img rebase -f qcow2 -F qcow2 -b "$2.qcow2" "$1.qcow2"
}

copy() {
    cp --sparse=always "$1.raw" "$2.raw"
}

step_minimal() {
    fresh minimal.raw "$kernel"
    qemu-img convert -f raw -O qcow2 minimal.raw minimal.qcow2
}

step_independent() {
    fresh independent.raw "$kernel,openssh-server,vim-tiny,rsyslog,cron"
    qemu-img convert -f raw -O qcow2 independent.raw independent.qcow2
    rm independent.raw
}

step_toolchain() {
    copy minimal toolchain
    enter toolchain.raw
    inside $install build-essential git python3 gdb cmake
    leave
    changed toolchain minimal
    rm toolchain.raw
}

step_clones() {
    copy minimal clone-a
    enter clone-a.raw
    inside $install python3 perl
    inside $install openssh-server vim curl
    inside $install git rsyslog
    leave
    changed clone-a minimal
    rm clone-a.raw
    copy minimal clone-b
    enter clone-b.raw
    inside $install nginx-light tcpdump strace
    inside $install git curl
    inside apt-get purge -qq -y nginx-light tcpdump
    inside $install rsyslog vim openssh-server
    inside $install perl python3
    leave
    changed clone-b minimal
    rm clone-b.raw
}

step_database() {
    copy minimal services
    enter services.raw
    inside $install postgresql nginx
    leave
    changed services minimal
    copy services database
    rm minimal.raw
    enter database.raw
    postgres
    inside su postgres -c 'createdb bench && pgbench -q -i -s 20 bench && psql -c checkpoint'
    stop
    leave
    changed database services
    copy database database-after
    rm services.raw
    enter database-after.raw
    postgres
    inside su postgres -c 'pgbench -n -c 2 -t 3000 bench && psql -c checkpoint'
    stop
    leave
    changed database-after database
    rm database.raw database-after.raw
}

postgres() {
    mkdir -p root/run/postgresql
    chroot root chown postgres: /run/postgresql
    cluster=$(ls root/etc/postgresql)
    inside pg_ctlcluster "$cluster" main start
}

stop() {
    inside pg_ctlcluster "$cluster" main stop
    sync -f root
}

size=$((2 << 30))
for step in "$@"; do
    "step_$step"
done
rm -rf root log
