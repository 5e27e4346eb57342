"""What a trained model knows: multiple-choice tasks and texts, scored by likelihood.

task -> encode -> score -> measure -> record          texts: the loss on files, a source each
"""
