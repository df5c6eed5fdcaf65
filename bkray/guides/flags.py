"""The flags of the guides' long-context script, and what each is here."""

FLAGS = {
    "seq_len": "model.n_seq",
    "multi_length": "bkray sweep ladder",
    "sequence_lengths": "ladder.lengths",
    "d_model": "model.d_model",
    "n_layers": "model.n_layers",
    "n_heads": "model.n_heads",
    "d_ff": "model.d_hidden",
    "batch_size": "train.batch_size",
    "epochs": "train.steps",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "grad_clip": "optimizer.clip_norm",
    "dataset": "data.corpus",
    "data_limit": "data.max_bytes",
    "eval_only": "bkray eval",
    "streaming": "bkray eval --stream",
    "eval_tokens": "bkray eval --tokens",
    "log_interval": "train.eval_every",
    "save_dir": "bkray train --out",
    "device": "train.device",
    "seed": "seed",
    "use_birman_schwinger": "train.monitor=birman_schwinger",
    "use_scattering_router": "model.router=scattering",
    "use_semiseparable": "model.semiseparable_rank",
}
"""A config path, one with the value that the flag means, or a command with its option."""
