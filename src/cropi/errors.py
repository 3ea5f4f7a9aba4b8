"""The one exception class that means "your input, not our bug".

The command line turns an `InputError` into one sentence on stderr and exit code 2; every other
exception keeps its traceback, because it is a defect worth a report.
"""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the value, what would be allowed and how to mend it, in one sentence.
    """
