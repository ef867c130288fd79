"""What to do about an output that is there already, or is of another run, in the words of the entry that was used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """Parts of sentences, each of which begins with a verb.

    Args:
        go_on: with what an interrupted run left.
        begin_anew: forget that, and replace what stands there.
        accept_changes: go on although something is different.
        go_elsewhere: leave what stands there alone.
        samples: how the number of answers a row is given.
        seed: how the run's seed is given.
    """

    go_on: str
    begin_anew: str
    accept_changes: str
    go_elsewhere: str
    samples: str
    seed: str


COMMAND_LINE = Advice(
    go_on="give --resume",
    begin_anew="give --overwrite",
    accept_changes="give --accept-changes to answer what remains as things are now",
    go_elsewhere="choose another --output",
    samples="--num-return-sequences",
    seed="--seed",
)
LIBRARY = Advice(
    go_on="give resume=True",
    begin_anew="give overwrite=True",
    accept_changes="give accept_changes=True to answer what remains as things are now",
    go_elsewhere="choose another output",
    samples="num_return_sequences",
    seed="seed",
)
