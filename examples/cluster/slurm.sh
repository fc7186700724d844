#!/bin/bash
# Trains d12 on four machines of a Slurm cluster:
#
#     sbatch examples/cluster/slurm.sh
#     sbatch examples/cluster/slurm.sh --max_steps=20000 --lr=3e-4       further options of python -m pyllmc.train
#     DATA=data/my OUT=runs/my sbatch --nodes=8 examples/cluster/slurm.sh
#
# A run keeps its batch on another number of machines.
# The same command begins the run and goes on with it (--resume=auto). If it takes longer than the cluster allows, submit it several
# times with `sbatch --dependency=singleton`: each job waits for the one before, and goes on where that one has ended.
# The folder from which it is submitted, with the data and the run, must be seen by all machines; so must Python with pyllmc and torch.
# How many machines pay, and what memory each needs: python -m pyllmc.plan --nodes=4 --network=10Gbit

#SBATCH --job-name=pyllmc
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=pyllmc-%j.log
# --ntasks-per-node=1: one torchrun on each machine starts the processes there (--nproc_per_node below).
# --cpus-per-task: all cores of a machine; the engine takes those that Slurm gives it.
# --requeue: if a machine fails or is taken away, Slurm starts the job again, and the run goes on from its last checkpoint.
# --signal=TERM@120: two minutes before the time is up all processes are told, and the run saves a checkpoint.

set -euo pipefail

DATA=${DATA:-data/my} # made beforehand: python -m pyllmc.prepro --input my.txt --out data/my
OUT=${OUT:-runs/d12}

# The processes meet at the first machine of the job, at a port that another job on it is unlikely to have.
HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
PORT=$((20000 + SLURM_JOB_ID % 20000))

# torchrun kills its processes half a minute after it has passed a signal on, unless told: they have nearly two to save a checkpoint.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110

# If a machine has several networks, name the one between machines here: export GLOO_SOCKET_IFNAME=ib0
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=1 \
    --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$HOST:$PORT" \
    -m pyllmc.train --data="$DATA" --model=d12 --out="$OUT" --resume=auto "$@"
