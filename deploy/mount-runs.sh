#!/bin/sh
# mount-runs.sh DEVICE FOLDER: mounts a disk of its own, now and at every start of the machine. It makes a file
# system only where "blkid -p" finds nothing (2: also said of a device that it cannot open, and of bytes that it
# does not know) and both the first and the last MiB can be read and are zero, as on a new disk of a cloud.
set -eu
device=$1
folder=$2

zero() {  # one MiB on stdin, all of it there and zero
    cmp -s -n 1048576 - /dev/zero
}

timeout 120 sh -c "until test -e '$device'; do sleep 1; done"
found=0
sudo blkid -p "$device" > /dev/null || found=$?
case $found in
    0) ;;
    2)
        if ! sudo head -c 1048576 "$device" | zero || ! sudo tail -c 1048576 "$device" | zero; then
            echo "$device has no file system, but is not empty or cannot be read: not formatted" >&2
            exit 1
        fi
        sudo mkfs.ext4 -q "$device" < /dev/null
        ;;
    *) echo "blkid says $found of $device: not mounted" >&2; exit 1 ;;
esac
grep -qsF "$device $folder " /etc/fstab ||
    echo "$device $folder ext4 defaults,nofail 0 2" | sudo tee -a /etc/fstab > /dev/null
mkdir -p "$folder"
sudo mount "$folder"
sudo chown "$(id -u):$(id -g)" "$folder"
