"""Flower logs every exception that ends a run with its traceback; ours say all in one line."""

from logging import LogRecord, getLogger

from flower_chain.errors import FlowerChainError


def tell_in_one_line() -> None:
    """Have Flower's log tell exceptions of this package without a traceback."""
    getLogger("flwr").addFilter(_without_traceback)


def _without_traceback(record: LogRecord) -> bool:
    fault = record.exc_info[1] if record.exc_info else None
    if isinstance(fault, FlowerChainError):
        record.msg = f"{record.getMessage()}: {type(fault).__name__}: {fault}"
        record.args, record.exc_info = (), None
    return True
