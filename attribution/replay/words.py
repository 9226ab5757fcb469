"""Words that link a query and a training row: derivatives of their kernel by tokens.

    of_query, of_rows = token_values(model, query, rows, direction, shares, tokenizer)
    words = words_of(rows.columns_of(0), tokenizer, of_rows[0])

The kernel of a query q and a row x is k(q, x) = g(q)' g(x), for one direction u of the outputs (C):
g(x) is the gradient of u . z(x) with respect to the weights of the linear layers (without the
preconditioner of `features`). The word embedding e of a token is
replaced by b + s (e - b), with a scale s, 1 in the model as it is, and b the embedding of the mask
token (or 0). The token's value is the derivative of the kernel by s, averaged over a path, at whose
points all scales of the row are alike; special tokens keep theirs. With PATH, from 0 to 1, the
values of a row add up to what the kernel loses when every word is masked (integrated gradients:
arXiv:1703.01365, equation 3), but for jumps of the gradient at a ReLU, as in the head of
DistilBERT. With (1,) they would be the derivative at the model as it is.

With v = g(q) fixed, the gradient of a batch's summed outputs, times v, is the sum of its rows'
kernels; one backward pass through that gives the values of all these rows. (Not so a forward
derivative: torch's of a layer norm holds mean and variance fixed in a backward pass through it.)

Symbols: N rows, B rows of a batch, T tokens, C outputs.
"""

import itertools
import unicodedata
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.data.dataset import GlueDataset
from attribution.engine.batching import batches_within
from attribution.files import Refused
from pipeline import model_inputs

PATH = tuple((step + 0.5) / 4 for step in range(4))  # scales from 0 to 1, by the midpoint rule
BUDGET = 1024  # tokens of a batch: second derivatives keep several times what first ones do

Weights = dict[str, torch.Tensor]  # parameter of a linear layer -> a tensor of its shape


def token_values(
    model: nn.Module,
    query: GlueDataset,
    rows: GlueDataset,
    direction: torch.Tensor,
    shares: torch.Tensor,
    tokenizer=None,
    path: Sequence[float] = PATH,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(of the query (T,), of each row (T,)): values of their tokens for each other, on the CPU. The
    query's are those of the sum of shares * k(query, row).

    model: in evaluation mode afterwards, else unchanged. query: a data set of one row. direction:
    u (C,), for instance (e_a - e_b) / sqrt 2, or (1,) for a regression. shares: (N,). tokenizer:
    knows mask and special tokens; None: b = 0, and all tokens are alike. path: scales.
    """
    model.eval()
    direction = direction.to(next(model.parameters()))
    along_query = gradient(model, query, direction, torch.ones(1))
    along_rows = gradient(model, rows, direction, shares)
    (of_query,) = derivatives(model, query, direction, along_rows, tokenizer, path)
    return of_query, derivatives(model, rows, direction, along_query, tokenizer, path)


def linear_weights(model: nn.Module) -> Weights:
    """Weights and biases of the model's linear layers, by which derivatives are taken."""
    return {
        f"{name}.{part}": values.detach().requires_grad_()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for part, values in module.named_parameters(recurse=False)
    }


def gradient(
    model: nn.Module, data: GlueDataset, direction: torch.Tensor, shares: torch.Tensor
) -> Weights:
    """Gradient of the sum of shares * u . z over the rows. shares: (N,)."""
    weights = linear_weights(model)
    total = {name: torch.zeros_like(x) for name, x in weights.items()}
    for batch in batches_within(data.lengths, BUDGET):
        inputs = inputs_on(direction.device, data, batch)
        outputs = functional_call(model, weights, kwargs=inputs).logits @ direction
        target = outputs @ shares[batch].to(outputs)
        found = torch.autograd.grad(target, [*weights.values()], materialize_grads=True)
        for name, value in zip(weights, found, strict=True):
            total[name] += value
    return total


def derivatives(
    model: nn.Module,
    data: GlueDataset,
    direction: torch.Tensor,
    step: Weights,
    tokenizer,
    path: Sequence[float],
) -> list[torch.Tensor]:
    """For each row (T,), on the CPU: derivatives by the scales of its tokens of the derivative of
    u . z along a step of the weights; their mean over a path.
    """
    weights = linear_weights(model)
    special, base = [], torch.zeros(1)
    if tokenizer is not None:
        special = [x for x in tokenizer.all_special_ids if x != tokenizer.unk_token_id]
        if tokenizer.mask_token_id is not None:
            base = model.get_input_embeddings().weight[tokenizer.mask_token_id].detach()
    base = base.to(direction)
    values = [torch.zeros(int(length), dtype=direction.dtype) for length in data.lengths]
    for batch in batches_within(data.lengths, BUDGET):
        inputs = inputs_on(direction.device, data, batch)
        tokens = inputs["input_ids"]
        fixed = torch.isin(tokens, torch.tensor(special, dtype=tokens.dtype).to(tokens))
        for point in path:
            scales = torch.where(fixed, 1.0, point).to(direction).requires_grad_()
            logits = scaled_logits(model, weights, inputs, scales, base)
            # Of the sum of all rows: the tokens of a row change its own part only.
            found = torch.autograd.grad(
                (logits @ direction).sum(),
                [*weights.values()],
                create_graph=True,
                materialize_grads=True,
            )
            along = sum((g * step[name]).sum() for name, g in zip(weights, found, strict=True))
            (by_token,) = torch.autograd.grad(along, scales)
            by_token = by_token.masked_fill(fixed, 0).cpu()
            for row, value in zip(batch, by_token, strict=True):
                values[row] += value[: data.lengths[row]] / len(path)
    return values


def scaled_logits(
    model: nn.Module,
    weights: Weights,
    inputs: dict[str, torch.Tensor],
    scales: torch.Tensor,
    base: torch.Tensor,
) -> torch.Tensor:
    """Logits (B, C) with the word embeddings' distances from a base (D,) multiplied by scales
    (B, T).
    """
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, args, embedded: base + (embedded - base) * scales[..., None]
    )
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the only attention with second derivatives
            return functional_call(model, weights, kwargs=inputs).logits
    finally:
        handle.remove()


def inputs_on(device: torch.device, data: GlueDataset, batch: list[int]) -> dict[str, torch.Tensor]:
    """Inputs of the model for some rows, on the device."""
    inputs = model_inputs(data.batch(batch))
    return {name: value.to(device) for name, value in inputs.items()}


# --- words ----------------------------------------------------------------------------------------


def words_of(columns: list[str], tokenizer, values: torch.Tensor) -> list[list[tuple[str, float]]]:
    """Pieces of each text column of a row, with the sum of the values of a piece's tokens.

    Pieces are the words of the tokenizer, and what lies between them, whose value is 0; joined they
    are the text. values: (T,), of all tokens of the row; those of special tokens are left out.
    Raises Refused for a tokenizer that does not tell where in the text its tokens are.
    """
    if not tokenizer.is_fast:
        raise Refused(
            "the tokenizer does not tell where in the text its tokens are; use one with a fast "
            "version (tokenizer.json)"
        )
    # A row that was cut has as many tokens as were allowed.
    encoded = tokenizer(
        *columns, truncation=True, max_length=len(values), return_offsets_mapping=True
    )
    tokens = zip(
        encoded.sequence_ids(),
        encoded.word_ids(),
        encoded["offset_mapping"],
        values.tolist(),
        strict=True,
    )
    # Of each column, in the order of the text: [begin, end, value, number] of words.
    words: list[list[list]] = [[] for _ in columns]
    for column, number, (begin, end), value in tokens:
        if column is None:
            continue
        known = words[column]
        # One character may be the end of a word and the begin of the next: ½ is 1, ⁄ and 2.
        if known and (number == known[-1][3] or begin < known[-1][1]):
            known[-1][1:] = [max(end, known[-1][1]), known[-1][2] + value, number]
        else:
            known.append([begin, end, value, number])
    return [pieces_of(text, known) for text, known in zip(columns, words, strict=True)]


def pieces_of(text: str, words: list[list]) -> list[tuple[str, float]]:
    """Words of the text (begin, end, value, number) without spaces before them, and what lies
    between them.
    """
    pieces: list[tuple[str, float]] = []
    place = 0
    for begin, end, value, _ in [*words, [len(text), len(text), 0.0, None]]:
        between = text[place:begin]
        if pieces:  # what the tokenizer left out of the word before
            marks = "".join(itertools.takewhile(is_mark, between))
            between = between[len(marks) :]
            pieces[-1] = (pieces[-1][0] + marks, pieces[-1][1])
        word = text[begin:end].lstrip() or text[begin:end]
        pieces += [(between + text[begin : end - len(word)], 0.0), (word, value)]
        place = end
    return [piece for piece in pieces if piece[0]]


def is_mark(character: str) -> bool:
    """Whether the character changes the one before it, as accents do, or is not seen."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")
