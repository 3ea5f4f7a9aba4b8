"""Whose moments are under number 17 of a saved optimizer?

torch's optimizers save numbers, not names. A number is the parameter's place in the groups the
optimizer was made with, so the groups are made again, in every way that a checkpoint may have
been written, and held to what was saved: the size of every group and the shape of every moment.
One assignment must fit, and one only; none means another model, two that shapes do not decide.

Within one way, parameters of one shape (a projection of layer 3 and of layer 7) are told apart
by the model's own order, as when training resumes: a file in which two such moments were
exchanged by hand would pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from torch import nn

from cropi.errors import InputError
from cropi.policy.optimizer_file import SavedAdam

Groups = list[list[str]]
Shape = tuple[int, ...]

MEND = "give the model of that very checkpoint, with the adapters it was trained with"


def assign(saved: SavedAdam, model: nn.Module) -> dict[str, int]:
    """The number in the file of each parameter that was trained, by name.

    Raises InputError where no assignment fits, or more than one.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    ways = groupings(model) if saved.names is None else _known(saved, saved.names, shapes)
    fitting: list[dict[str, int]] = []
    misfits = []
    for groups in ways:
        fits, reason = _misfit(groups, shapes, saved)
        assigned = dict(zip(chain(*groups), chain(*saved.groups), strict=False))
        if reason:
            misfits.append((fits, reason))
        elif assigned not in fitting:
            fitting.append(assigned)
    if not fitting:
        # The way that fits furthest is most likely the one meant.
        _, reason = max(misfits, key=lambda found: found[0])
        raise InputError(f"{saved.file} is not of this model: {reason}; {MEND}")
    if len(fitting) > 1:
        one, other = fitting[:2]
        name = next(n for n in one if one[n] != other.get(n))
        raise InputError(
            f"{saved.file} fits this model in {len(fitting)} ways, and shapes do not decide whose "
            f"the moments of {name} {shapes[name]} are; {MEND}"
        )
    return fitting[0]


def groupings(model: nn.Module) -> Iterator[Groups]:
    """Names in the groups and the order in which an optimizer may have been given them.

    By either rule of transformers for weight decay, or in one group; of the trainable parameters,
    or of all, where the model was partly frozen after training.
    """
    # named_parameters has tied weights once, under the first of their names, as in training.
    every = {name: p.requires_grad for name, p in model.named_parameters()}
    trainable = [name for name, wanted in every.items() if wanted]
    for names in (trainable, list(every)):
        for decay in (_decaying(model), _decaying_by_type(model)):
            yield [[n for n in names if n in decay], [n for n in names if n not in decay]]
        yield [names]


def _decaying(model: nn.Module) -> set[str]:
    """Names that the installed transformers gives weight decay."""
    from transformers import Trainer

    # The method uses nothing of its trainer, and making one would need training arguments.
    return set(Trainer.get_decay_parameter_names(None, model))


def _decaying_by_type(model: nn.Module) -> set[str]:
    """The rule of older versions: all but biases and what an nn.LayerNorm holds."""
    norms = {n for n, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    names = [name for name, _ in model.named_parameters()]
    return {n for n in names if "bias" not in n and n.rpartition(".")[0] not in norms}


def _known(saved: SavedAdam, names: Groups, shapes: Mapping[str, Shape]) -> list[Groups]:
    """The one grouping that the file itself names; raises InputError for a name not here."""
    if stranger := next((name for name in chain(*names) if name not in shapes), None):
        raise InputError(f"{saved.file} has moments of {stranger}, which the model lacks; {MEND}")
    return [names]


def _misfit(groups: Groups, shapes: Mapping[str, Shape], saved: SavedAdam) -> tuple[int, str]:
    """How many parameters fit before the first that does not, and why; "" where all do."""
    wanted, found = [len(g) for g in groups], [len(g) for g in saved.groups]
    if wanted != found:
        first = next(chain(*groups), "none")
        return -1, (
            f"it was made with groups of {found} parameters where the model's, from {first} on, "
            f"have {wanted}"
        )
    pairs = zip(chain(*groups), chain(*saved.groups), strict=True)
    for count, (name, number) in enumerate(pairs):
        moment = saved.moments.get(number)
        if moment is not None and tuple(moment.shape) != shapes[name]:
            return count, (
                f"parameter {name} has shape {shapes[name]} where the moment in its place has "
                f"{tuple(moment.shape)}"
            )
    return len(shapes), ""
