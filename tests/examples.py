"""How many examples a property is tried with."""

from hypothesis import settings

EXAMPLES = 40
"""What a property is tried with that says nothing else."""


def number_of_examples(count: int) -> settings:
    """A property's own number of examples, times as many as the profile of the run asks for."""
    return settings(max_examples=count * settings().max_examples // EXAMPLES)
