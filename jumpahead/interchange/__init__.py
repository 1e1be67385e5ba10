"""Code that the formats of SAEs share; a format is a file in formats/.

format.py       the base class of a format, and the files that it reads
common_form.py  an SAE in the conventions that formats agree on, and back
hook_names.py   names of sites in other libraries
config_file.py  JSON files of other libraries, read as untrusted data
weights.py      weight files of other libraries, read as untrusted data: safetensors, .npz, .pt
fetch.py        SAEs on the Hugging Face hub
"""
