#!/usr/bin/env bash
# Make a guest of Debian 13: OUT/root.img (ext4), OUT/vmlinuz, OUT/initrd. Needs root, and a mount namespace of its own:
#   unshare --mount --propagation private guest-image.sh OUT MIRROR UV LOCK AGENT PORT PACKAGE…
set -euo pipefail
out=$1 mirror=$2 uv=$3 lock=$4 agent=$5 port=$6
shift 6
packages=$(IFS=,; echo "$*")

work=$(mktemp -d)
mount -t tmpfs -o size=6g none "$work" # it goes with this namespace; no disk is waited for
export TMPDIR=$work
root=$work/root
mmdebstrap --quiet --mode=root --variant=minbase --skip=check/empty --include="$packages" \
  --aptopt='Apt::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  trixie "$root" "$mirror"

# As `make setup` does it, for the guest's Python.
cp "$uv" "$root/tmp/uv"
cp "$lock" "$root/tmp/lock"
cp --dereference "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/tmp/certificates"
cp --dereference /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc none "$root/proc"
chroot "$root" env -u TMPDIR python3 -m venv --without-pip /opt/venv
chroot "$root" env -u TMPDIR SSL_CERT_FILE=/tmp/certificates UV_NO_CACHE=1 \
  /tmp/uv pip install --quiet --compile-bytecode --python /opt/venv/bin/python --require-hashes -r /tmp/lock
umount "$root/proc"
rm -rf "$root"/tmp/* "$root/etc/resolv.conf"
echo /opt/vnafs >"$(echo "$root"/opt/venv/lib/python3*/site-packages)/vnafs.pth"
printf '#!/opt/venv/bin/python\nimport sys\nfrom appliance.cli.main import main\nsys.exit(main())\n' >"$root/usr/local/bin/vna"
chmod +x "$root/usr/local/bin/vna"

install -m 755 "$agent" "$root/usr/local/lib/guest_agent.py"
cat >"$root/etc/systemd/system/guest-agent.service" <<UNIT
[Unit]
After=network.target
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/guest_agent.py $port
KillMode=process
TasksMax=infinity
[Install]
WantedBy=multi-user.target
UNIT
printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\n' >"$root/etc/systemd/network/outside.network"
echo guest.example >"$root/etc/hostname"
printf '127.0.0.1 localhost\n192.0.2.1 guest.example guest\n192.0.2.2 client.example client\n' >"$root/etc/hosts"
echo '/dev/vda / ext4 noatime 0 1' >"$root/etc/fstab"
# It is no first boot, and nothing is new since the last one.
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
touch "$root/etc/.updated" "$root/var/.updated"
systemctl --quiet --root="$root" enable guest-agent.service systemd-networkd.service
# Servers are started by tests, with what tests rendered.
systemctl --quiet --root="$root" disable nfs-server.service smbd.service nmbd.service krb5-kdc.service \
  krb5-admin-server.service
systemctl --quiet --root="$root" mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer \
  systemd-networkd-wait-online.service samba-ad-dc.service e2scrub_reap.service nfs-blkmap.service getty.target \
  serial-getty@ttyS0.service systemd-logind.service systemd-timesyncd.service

truncate -s 8G "$out/root.img"
mkfs.ext4 -q -d "$root" "$out/root.img"
cp --dereference "$root"/boot/vmlinuz-* "$out/vmlinuz"
cp --dereference "$root"/boot/initrd.img-* "$out/initrd"
umount -l "$work"
rmdir "$work"
