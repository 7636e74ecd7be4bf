"""A Raspberry Pi under user emulation: what its processor executes is counted, nothing is timed."""

from csr_deploy.bench.emulated_pi.boards import BOARDS, Board, find_board
from csr_deploy.bench.emulated_pi.emulator import Count, Job, count
from csr_deploy.bench.emulated_pi.inside import Inside, look_inside
from csr_deploy.bench.emulated_pi.root import Root, cache_folder, find_root, prepare_root
from csr_deploy.bench.emulated_pi.subjects import Row, count_subjects

__all__ = [
    "BOARDS",
    "Board",
    "Count",
    "Inside",
    "Job",
    "Root",
    "Row",
    "cache_folder",
    "count",
    "count_subjects",
    "find_board",
    "find_root",
    "look_inside",
    "prepare_root",
]
