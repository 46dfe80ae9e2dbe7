# How rsync gets from one compute host to another: in place of ssh, for each host is a mount namespace, that of the process
# which hosts/ADDRESS names. Arguments: the address, the command.
folder=$(dirname "$0")
read -r process <"$folder/hosts/$1"
shift
exec nsenter --target "$process" --mount -- sh -c "$*"
