"""Search for the CSR-Conv network that fits a device: many workers, one study in Optuna's storage."""

from csr_deploy.search.settings import SearchSettings

__all__ = ["SearchSettings"]
