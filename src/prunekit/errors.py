"""The errors of prunekit: one clear sentence that names the thing, the place and the allowed values."""


class PrunekitError(Exception):
    """Base of every error that prunekit raises on purpose; its text is meant for the user."""


class InputError(PrunekitError, ValueError):
    """A setting, a name or an argument that cannot be accepted; raised before anything is changed."""


class DataError(PrunekitError):
    """A dataset or a file that is missing, damaged, truncated or of another kind than expected."""


class ModelError(PrunekitError):
    """A model that cannot be imported, pruned, saved or loaded as asked."""
