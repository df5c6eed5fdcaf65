#!/bin/sh
# mount-runs.sh DEVICE FOLDER: mounts a disk of its own, now and at every start of the machine. A disk that
# holds anything at all is never formatted: only "blkid -p" saying that it found nothing (2) makes a file system.
set -eu
device=$1
folder=$2

timeout 120 sh -c "until test -e '$device'; do sleep 1; done"
found=0
sudo blkid -p "$device" > /dev/null || found=$?
case $found in
    0) ;;
    2) sudo mkfs.ext4 -q "$device" < /dev/null ;;
    *) echo "blkid says $found of $device: not mounted" >&2; exit 1 ;;
esac
grep -qsF "$device $folder " /etc/fstab ||
    echo "$device $folder ext4 defaults,nofail 0 2" | sudo tee -a /etc/fstab > /dev/null
mkdir -p "$folder"
sudo mount "$folder"
sudo chown "$(id -u):$(id -g)" "$folder"
