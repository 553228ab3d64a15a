# Remove what is left of one in the tree of cgroups, in a mount namespace of our own: sh -e, with FOLDER CGROUP.
mount -t cgroup2 none "$1/cgroup"
[ ! -d "$1/cgroup$2" ] || find "$1/cgroup$2" -depth -type d -exec rmdir {} +
