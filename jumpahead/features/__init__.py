"""Feature pages, on what each feature of an SAE responds to: examples, statistics and pages that open from the disk.

    collect.py      one streaming pass over held-out text, all SAEs of a site together     collect_loops.py  its loops
    examples.py     passages of the text at which a feature fires
    token_text.py   tokens as text, characters that are split over tokens included
    logits.py       the tokens whose logits a feature raises and lowers
    labels.py       a label from token statistics, with a score on other tokens
    similarity.py   nearest features, and the same feature in other SAEs
    bias.py         whether a feature acts like a bias
    records.py      all of it as one JSON object per feature
    pages.py        the folder: chunks of records that a page loads on demand; page.html.jinja, page.css, page.js
    prompt.py       which features fire on a sentence
    neuronpedia.py  the same data under Neuronpedia's names
    build.py        all of it, for several SAEs

Nothing here needs a network or a server. Memory is bounded by the number of features, whatever the text.
"""
