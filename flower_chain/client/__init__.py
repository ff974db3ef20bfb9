"""What runs on a device."""

from flower_chain.client.app import ClientApp
from flower_chain.client.private import private
from flower_chain.client.validation import Validation, validation_samples

__all__ = ["ClientApp", "Validation", "private", "validation_samples"]
