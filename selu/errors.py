"""Two kinds of error. A *terminal* one is said once with the way out; a *transient* one is worth another try."""


class SeluError(Exception):
    """Base of every error that this project raises on purpose; its text is one sentence for a person."""


class TerminalError(SeluError):
    """Trying again cannot help: bad input, a corrupt artifact, a checkpoint of the wrong architecture."""


class ConfigError(TerminalError):
    """A setting, path or name that the user gave cannot work."""


class NothingToLearn(ConfigError):
    """The critic accepted nothing that a model could be taught."""


class ArtifactError(TerminalError):
    """An artifact on disk is missing, incomplete or altered."""


class TransientError(SeluError):
    """Trying again on a fresh process may help: a dead simulator, a lost server."""


class WorldError(TransientError):
    """The simulator died, stalled or answered garbage."""


def first_line(error: BaseException) -> str:
    """The first line of somebody else's error, as a sentence to end one of ours with; two, where the first only announces."""
    line, *more = (part.strip() for part in (str(error).strip() or type(error).__name__).splitlines())
    if line.endswith(":"):
        line = f"{line} {more[0]}" if more else line[:-1]
    return line if line.endswith((".", "!", "?")) else line + "."
