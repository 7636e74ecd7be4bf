"""Parts of tools/bench_lowering.py, the table of CSR networks against their backbones on stock runtimes."""
