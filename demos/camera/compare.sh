#!/bin/sh
# The packaged CSR network against its backbone, on a camera, file or folder:  demos/camera/compare.sh [SOURCE]
exec csr-demo --model resnet56-csr2 --against resnet56 --source "${1:-auto}"
