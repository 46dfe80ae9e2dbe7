# First process of a PID namespace of its own, in a mount namespace of its own: whatever it starts ends with it, and it
# ends with the test, because then its standard input does.
#
# Argument: the folder that stands for libvirtd's own folders. Input: orders, one a line; each is answered by its exit
# code. Bash, unlike dash, reaps what QEMU's and libvirtd's own children leave to it while it waits for an order.
for part in etc/libvirt var/lib/libvirt run/libvirt var/log/libvirt var/cache/libvirt; do
    mkdir -p "/$part" && mount --bind "$1/${part//\//-}" "/$part" || exit
done
# What makes this a host of its own.
[ ! -e "$1/host" ] || . "$1/host" || exit

start() {
    libvirtd -p /run/libvirt/libvirtd.pid </dev/null >>/var/log/libvirt/libvirtd.log 2>&1 &
    libvirtd=$!
}

alive() {
    kill -0 "$libvirtd"
}

kill_it() {
    kill -KILL "$libvirtd"
    wait "$libvirtd"
    ! alive
}

while read -r order; do
    "$order" 2>>/var/log/libvirt/keeper.log
    echo $?
done
