"""Activations that SAEs are trained on: where they come from, how they are stored, and the stream of shuffled batches.

    config.py            the study's `[activations]` table
    base.py              the interface of every origin
    origins/             one origin of activations per file
    stream.py            shuffled training batches, by their number
    prefetch.py          computing the next values while the current one is used
    row_files.py         safetensors files of rows, written and read group by group
    shard_folder.py      activations of a language model on disk: the index and its files
    shard_writer.py      … and writing them, in any number of processes (writer_rank.py)
    tensor_files.py      activations that were computed elsewhere: .npy and .safetensors files
    tensor_writer.py     … and writing those that an iterator gives

No torch at import of this package, of `config` or of `origins`.
"""
