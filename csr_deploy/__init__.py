"""csr-deploy: takes channel-split recurrent convolution (CSR-Conv) networks to edge devices."""

__version__ = "0.1.0"
