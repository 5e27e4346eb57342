"""Settings of a Slurm cluster: edit this file once, then every launch reads it.

Purpose:  What `jaxscale launch DIR --on slurm` asks for and starts. Fields that are left out are the cluster's own
          defaults; each can be overridden for one launch, such as --slurm.partition preemptible.
Command:  jaxscale launch runs/quickstart --on slurm --dry-run     the script and the tasks, nothing is submitted
          jaxscale launch runs/quickstart --on slurm               submits; again: only what is in no job any more
Expected: `squeue` shows one array; runs/quickstart/logs/slurm-JOB_TASK.out is what a task said, and
          runs/quickstart/launches/ what was submitted.
The study folder must lie under the same path on every node. Do not write passwords or keys here: the lines land in
the script. What is exported before the launch reaches the job (sbatch's default).
"""

from jaxscale.launch import SlurmSettings


def get_settings() -> SlurmSettings:
    """Two CPUs a task and Slurm's defaults; the comments show a GPU cluster."""
    return SlurmSettings(
        # partition="gpu",
        # account="my-project",
        # gpus_per_node=8,
        # workers_per_node=8,  # eight small cells side by side, a GPU each
        # nodes_per_cell=2,  # or: one large cell over two nodes, of tasks_per_node processes each
        cpus_per_task=2,
        time_limit="04:00:00",
        notice_s=120,
        task_minutes=60,
        # setup=("module load cuda/12.8", "source /home/me/jaxscale/.venv/bin/activate"),
        # command=("jaxscale",),  # default: the Python that launches
        # prefix=("apptainer", "exec", "--nv", "/images/jaxscale.sif"),
        # sbatch_args=("--mail-type=FAIL",),
    )
