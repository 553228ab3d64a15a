# Remove what is left below a test's cgroup, in a mount namespace of our own: sh -e, with FOLDER CGROUP. A process that has
# ended may be in it for a moment longer.
mount -t cgroup2 none "$1/cgroup"
until [ ! -d "$1/cgroup$2" ] || find "$1/cgroup$2" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.01; done
