"""Callbacks of a fit.

- `fatai.callbacks.schedulers`: learning rate schedules by name, and the callbacks that apply them or stop at a rate.
- `fatai.callbacks.checkpoint`: `SaveBestModel`, `SaveSnapshots`, and the best weights over several stages.
- `fatai.callbacks.resume`: `ResumeTraining`, which continues a fit that was killed.
- `fatai.callbacks.sample_weights`: `SampleWeights`, weights and noisy flags of training clips.
- `fatai.callbacks.augmentation`: `DisableAugmentation` in the last epochs.
- `fatai.callbacks.averaging`: `WeightAverage`, an exponential moving average of the weights.
- `fatai.callbacks.batch_norm`: `FreezeBatchNorm`, for networks that start from published weights.
- `fatai.callbacks.gradients`: `ClipGradValue`.
- `fatai.callbacks.failure`: NaN losses, batches that need too much memory.
- `fatai.callbacks.out_of_memory`: messages about too little memory and killed worker processes.
- `fatai.callbacks.csv_logger`: `EpochCSVLogger`, a row for each epoch in history.csv.
- `fatai.callbacks.progress`: `PlainProgress`, one line an epoch where there is no terminal.
- `fatai.callbacks.base`: what the callbacks above share.
"""
