"""Text to tokens to batches: corpora, tokenizers, token files, and the grain sources that read them.

    files -> documents -> training | held out -> repeated lines dropped -> token files -> batches
    corpus   documents     split                 lines                     tokens         batches

`build_tokens` does everything up to the token files, once for each text and tokenizer.
"""
