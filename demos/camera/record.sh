#!/bin/sh
# An annotated copy of a video:  demos/camera/record.sh IN.mp4 OUT.mp4 [ARTIFACT]
[ $# -ge 2 ] || { echo "usage: $0 IN OUT [ARTIFACT]" >&2; exit 2; }
if [ $# -ge 3 ]; then set -- "$1" "$2" "$3"; else set -- "$1" "$2" --model resnet56-csr2; fi
in=$1 out=$2
shift 2
exec csr-demo "$@" --source "$in" --record "$out"
