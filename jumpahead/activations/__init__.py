"""Activations that SAEs are trained on: their origins, their files, and the stream of shuffled batches.

    config.py            the study's `[activations]` table
    base.py              the interface of every origin
    origins/             one origin of activations per file
    stream.py            shuffled training batches; batch i is computed from i alone
    prefetch.py          compute the next values while the current value is used
    row_files.py         safetensors files of rows, written and read group by group
    shard_folder.py      read the folder of a language model's activations on disk
    shard_writer.py      write that folder, in any number of processes (writer_rank.py)
    tensor_files.py      read activations from .npy and .safetensors files of the user
    tensor_writer.py     write the tensors of an iterator to such files

No torch at import of this package, of `config` or of `origins`.
"""
