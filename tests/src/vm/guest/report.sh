#!/bin/sh
# Part of the lab's Debian root and of no other: tells over the serial console what came up.
# The lab's side of this is tests/src/vm/facts.rs.

say()
{
	# One write a line, on a line of its own even when something else was printing.
	printf '\n@lab %s\n' "$*" >/dev/console
}

state="$(systemctl is-system-running --wait)"
# From here on the kernel's messages would end up between these lines.
dmesg --console-level emerg
# Until what starts with the system has ended: udev's workers, generators, this unit's own start.
sleep 8

say "begin"
say "systemd ${state}"
for unit in $(systemctl list-units --failed --plain --no-legend --full | cut -d' ' -f1); do
	say "failed ${unit}"
done
# What stays: the least of ten seconds, since a timer's job or a worker may be there for one of them.
least="$(for _ in 1 2 3 4 5 6 7 8 9 10; do
	free -m | awk '/^Mem:/ { print $2, $3, $5 }'
	sleep 1
done | sort -n -k 2 | head -n 1)"
say "memory ${least}"
# Where it is, should it be too much.
awk '/^(AnonPages|Shmem|Slab|SUnreclaim|KernelStack|PageTables|Percpu|VmallocUsed|MemFree|MemAvailable|Cached|Buffers|Mapped|Unevictable|Mlocked|KReclaimable|Dirty):/ { print $1, $2 }' /proc/meminfo | while read -r name kib; do
	say "meminfo ${kib} ${name%:}"
done
awk '/^(TCP|UDP):/ { print $1, $NF * 4 }' /proc/net/sockstat | while read -r name kib; do
	say "meminfo ${kib} ${name%:}-sockets"
done
for process in /proc/[0-9]*; do
	awk '/^Name:/ { name = $2 } /^RssAnon:/ { anon = $2 } END { if (anon > 1024) print anon, name }' "${process}/status" 2>/dev/null
done | while read -r anon name; do
	say "process ${anon} ${name}"
done
# What is in RAM besides: files that the system's own services wrote, and which are large.
df -k -t tmpfs --output=used,target | tail -n +2 | while read -r used target; do
	say "tmpfs ${used} ${target}"
done
find /run /tmp /dev/shm /mnt/rw -xdev -type f -size +1024k -printf '%k %p\n' 2>/dev/null | while read -r size path; do
	say "file ${size} ${path}"
done
for target in / /mnt/ro /mnt/rw /run/rootswarm; do
	mount="$(findmnt -n -r -o TARGET,SOURCE,FSTYPE "${target}")" && say "mount ${mount}"
done
for pid in $(pgrep -f rootswarm-agent); do
	say "agent ${pid} $(awk '/^VmRSS:/ { rss = $2 } /^RssAnon:/ { anon = $2 } END { print rss, anon }' "/proc/${pid}/status")"
done
# Processes of the initramfs that still run, and the deleted files they keep in RAM.
for process in /proc/[0-9]*; do
	case "$(readlink "${process}/exe")" in
	*/rootswarm-agent*) ;;
	*" (deleted)")
		pinned="$(stat -L -c '%i %b' "${process}"/map_files/* 2>/dev/null | sort -u | awk '{ blocks += $2 } END { print int(blocks / 2) }')"
		say "left ${process#/proc/} $(awk '/^RssAnon:/ { print $2 }' "${process}/status") ${pinned} $(cat "${process}/comm")"
		;;
	esac
done
if [ -r /run/rootswarm/status.json ]; then
	say "status $(tr -d '\n' </run/rootswarm/status.json)"
fi
say "uptime $(cut -d' ' -f1 /proc/uptime)"
say "end"

# From here on a shell for the lab, on the second serial port: a line `ID COMMAND`, its output, and
# `@done ID STATUS` on a line of its own. The lab's side of this is tests/src/vm/shell.rs.
stty -F /dev/ttyS1 raw -echo || exit 0
exec 3<>/dev/ttyS1
while read -r id command <&3; do
	sh -c "${command}" </dev/null >&3 2>&1
	printf '\n@done %s %s\n' "${id}" "$?" >&3
done
