# Becomes a service of another compute host. Arguments: the file that is to name its process, its folder of instances, where it
# sees that folder, and the service's words.
echo $$ >"$1"
[ "$2" = "$3" ] || mount --bind "$2" "$3" || exit
shift 3
exec "$@"
