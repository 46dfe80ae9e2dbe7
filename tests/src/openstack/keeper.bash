# First process of a PID namespace of its own: whatever it starts ends with it, and it ends with the test, because then
# its standard input does.
#
# Argument: a folder where services/NAME is a script that becomes the service, and log/NAME what it says. Input: orders,
# one a line; each is answered by its exit code. Every service is a process group, so that its workers end with it.
folder=$1
exec 2>>"$folder/log/keeper"
set -m
declare -A processes

start() {
    bash "$folder/services/$1" </dev/null >>"$folder/log/$1" 2>&1 &
    processes[$1]=$!
}

alive() {
    kill -0 "${processes[$1]}"
}

stop() {
    kill -TERM "${processes[$1]}" && wait "${processes[$1]}"
    ! alive "$1"
}

kill_it() {
    kill -KILL -- "-${processes[$1]}"
    wait "${processes[$1]}"
    ! alive "$1"
}

# Has a service of Nova's log what each of its threads is at.
report() {
    kill -USR2 "${processes[$1]}"
}

while read -r order name; do
    "$order" "$name"
    echo $?
done
