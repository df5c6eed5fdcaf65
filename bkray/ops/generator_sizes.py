"""How large a sequence generator is: exact parameters, and memory before anything is built.

Arithmetic alone, in 32-bit numbers; no torch. Letters: B rows of a batch, L frames of a row, T
frames of training, D width, H hidden width, Z latent width.
"""

from dataclasses import dataclass

from bkray.errors import ConfigError

FLOAT_BYTES = 4
_N_MODES, _N_HEADS, _N_VALUES = 16, 16, 6
_KERNEL, _N_SHAPES = 5, 8
"""As in ``nn.vae_parts`` and ``nn.two_sided``; the test of the counts holds them together."""

_N_FEATURES = 2 * (1 + _N_VALUES) * _N_HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorShape:
    """What a ``VAEGenerator`` is sized by; ``n_classes`` is ``None`` where it knows none."""

    input_dim: int = 768
    hidden_dim: int = 1024
    latent_dim: int = 256
    training_sequence_length: int = 32
    learned_upsampling: bool = False
    n_classes: int | None = None
    mixer: str = "flat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """An estimate in bytes: what is held all along, and the most there is beside it."""

    parameters: int
    gradients: int = 0
    optimizer: int = 0
    """AdamW's two moments."""
    batches: int
    """Rows as they come in or go out."""
    activations: int
    """All that a pass and its way back hold at the worst moment, less gradients given back."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.batches + self.activations

    def said(self) -> str:
        """Return the estimate in words."""
        parts = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "batches": self.batches,
            "activations": self.activations,
        }
        each = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
        return f"{gib(self.total)} ({each})"


def gib(n_bytes: float) -> str:
    """Return ``1.50 GiB``."""
    return f"{n_bytes / 2**30:,.2f} GiB"


def n_parameters(shape: GeneratorShape) -> int:
    """Return the exact number of parameters."""
    D, H, Z = shape.input_dim, shape.hidden_dim, shape.latent_dim
    if shape.mixer == "flat":
        frames = shape.training_sequence_length * D
        encoder = _linear(frames, H) + _linear(H, 2 * Z)
        decoder = _linear(Z, H) + _linear(H, frames)
    else:
        encoder = _linear(D, H) + _block(H) + H + _linear(_N_MODES * H, 2 * Z)
        decoder = _linear(Z, _N_MODES * H) + _block(H) + H + _linear(H, D)
    classes = 2 * (shape.n_classes or 0) * H
    upsampler = D * _N_SHAPES * _KERNEL if shape.learned_upsampling else 0
    return encoder + decoder + classes + upsampler


def training_memory(shape: GeneratorShape, *, batch_size: int, n_frames: int) -> Memory:
    """Return the peak of training with AdamW on batches (B, L, D), above an idle process.

    It is what lives at once: a process that keeps what it frees grows to 1.4 times as much
    (``ops.memory.freed_memory_given_back``).

    Two moments may be the worst: the next batch comes while the last one and its gradients are
    there, or the errors are on their way back before there is a gradient.
    """
    parameters = n_parameters(shape)
    batch = batch_size * n_frames * shape.input_dim
    short = batch_size * shape.training_sequence_length * shape.input_dim
    between = 2 * batch + short
    # On the way back gradients come as activations go: of the two, the greater counts.
    back = batch + 6 * short - parameters
    if shape.learned_upsampling:
        back += max(5 * batch, batch + 2 * _N_SHAPES * short)
    beside = max(between, back + _saved(shape, batch_size))
    return Memory(
        parameters=FLOAT_BYTES * parameters,
        gradients=FLOAT_BYTES * parameters,
        optimizer=2 * FLOAT_BYTES * parameters,
        batches=FLOAT_BYTES * min(2 * batch, beside),
        activations=FLOAT_BYTES * (beside - min(2 * batch, beside)),
    )


def generation_memory(shape: GeneratorShape, *, n_rows: int, n_frames: int) -> Memory:
    """Return the peak of drawing ``n_rows`` samples of ``n_frames``, above an idle process."""
    rows = n_rows * n_frames * shape.input_dim
    short = n_rows * shape.training_sequence_length * shape.input_dim
    most = rows + (short if n_frames != shape.training_sequence_length else 0)
    if shape.learned_upsampling:
        most = max(3 * rows + short, rows + 2 * (_N_SHAPES + 1) * short)
    if shape.mixer == "bk":
        sites = n_rows * shape.training_sequence_length
        most = max(most, sites * (4 * shape.hidden_dim + 6 * _N_FEATURES))
    return Memory(
        parameters=FLOAT_BYTES * n_parameters(shape),
        batches=FLOAT_BYTES * rows,
        activations=FLOAT_BYTES * (most - rows),
    )


def require_room(
    shape: GeneratorShape, *, batch_size: int, n_frames: int, available_bytes: int
) -> Memory:
    """Return the estimate of training.

    Raises:
        ConfigError: it is above ``available_bytes``; the message shows both.
    """
    memory = training_memory(shape, batch_size=batch_size, n_frames=n_frames)
    if memory.total <= available_bytes:
        return memory
    raise ConfigError(
        f"a generator with a training length of {shape.training_sequence_length} and a hidden "
        f"width of {shape.hidden_dim} has {n_parameters(shape):,} parameters and would take about "
        f"{memory.said()} to train, where {gib(available_bytes)} are free: lower the training "
        "length, the hidden width or the batch size, or use mixer bk, whose parameters do not "
        "grow with the length"
    )


def _linear(n_in: int, n_out: int) -> int:
    return n_in * n_out + n_out


def _block(H: int) -> int:
    """Return the parameters of a block of the two-sided resolvent and its feed-forward part."""
    mixer = _linear(H, _N_HEADS) + H * _N_VALUES * _N_HEADS + _N_FEATURES
    mixer += _linear(H, _N_FEATURES) + _N_FEATURES * H + 2 * _N_HEADS
    return mixer + 2 * _linear(H, H) + 2 * H


def _saved(shape: GeneratorShape, batch_size: int) -> int:
    """Return the numbers that a pass keeps for the way back, beside rows at the training length.

    Per site of the resolvent's two blocks: eight times the hidden width and ten times the features
    each, those of the scans from both ends and their norm, gate and product; and what one block's
    way back makes beside.
    """
    if shape.mixer == "flat":
        return batch_size * (4 * shape.hidden_dim + 6 * shape.latent_dim)
    sites = batch_size * shape.training_sequence_length
    return sites * (2 * (8 * shape.hidden_dim + 10 * _N_FEATURES) + 6 * shape.hidden_dim)
