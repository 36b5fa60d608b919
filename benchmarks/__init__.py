"""How fast tritonconv is: `pytest benchmarks` measures, `python -m benchmarks` runs and reports.

cases    what is measured, its goals and its floors, from the CSV files beside it
sides    the calls: ours, eager cuDNN's, torch.compile's
networks the same of whole networks: what is measured, and the calls
gate     no call is timed whose result is wrong
device   device time, cold L2, CUDA graphs, peak memory, what machine this is
measure  a row's inputs, its gate and its timing, put together
host     what needs no GPU: the stubbed launch, the kernels that a network compiles
results  the file that a run leaves
report   a results file as Markdown; plots draws it; compare sets two side by side
sweep    all of it on a GPU, in so many seconds: plan orders it, jobs are its processes' calls,
         rehearsal its dry run, counters those of Nsight Compute
choose   the configurations that the package ships; regret tells how good the choices are
step     what a training step costs the host
"""
