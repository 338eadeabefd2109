"""One file for every kind of a part of layers: its row in `config.layer_kind.LAYER_KINDS`."""
