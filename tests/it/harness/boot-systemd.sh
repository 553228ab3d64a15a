# Become a systemd with the units in FOLDER/units, in namespaces of our own but for cgroups: sh -e, with
# FOLDER CGROUP SYSTEMD. CGROUP, a path from the root that we see, is the root of what it sees.
exec >"$1/systemd.log" 2>&1
mount -t cgroup2 none "$1/cgroup"
mkdir "$1/cgroup$2"
echo $$ > "$1/cgroup$2/cgroup.procs"
exec unshare --cgroup sh -ec '
umount "$1/cgroup"
mount -t proc proc /proc
# It would set limits of the kernel for all.
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd/system
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH="$1/units" \
    '"$3"' --system --unit=test.target --log-target=console --show-status=no' sh "$1"
