"""Where pictures come from."""

from csr_deploy.demo.sources.base import Source, SourceOptions
from csr_deploy.demo.sources.choose import SourceMaker, choose_source

__all__ = ["Source", "SourceMaker", "SourceOptions", "choose_source"]
