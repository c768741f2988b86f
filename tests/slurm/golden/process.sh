#!/bin/bash
# Trains the arms.
# Written by slurm.launch, which submits it with its dependencies; by hand: sbatch 'outputs/a study/slurm/1/scripts/train.sh'
#SBATCH --job-name='a study/train'
#SBATCH --chdir='/home/me/frankenstein suite'
#SBATCH --account='lab 7'
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:h100:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=120G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output='/home/me/frankenstein suite/outputs/a study/slurm/1/logs/train.%j.out'
#SBATCH --reservation='it'"'"'s mine'

slurm='outputs/a study/slurm/1' # logs and attempt counts
name=full-seed0
directory='outputs/a study/arms/full-seed0'
command=(
    train.grpo
    --config configs/pocket/grpo.yaml
    --model_name_or_path 'outputs/a study/sft'
    --seed 0
    --freeze mid llm:0-8
    --output_dir 'outputs/a study/arms/full-seed0'
)

# Each attempt has its own log; file descriptor 3 is the output shared by all attempts.
attempt=1
if [[ -e $slurm/attempts/$name ]]; then
    attempt=$(($(<"$slurm/attempts/$name") + 1))
fi
if ((attempt > 5)); then
    echo "$name was started 5 times; the end of its last log:"
    tail -n 15 "$slurm/logs/$name.5.log"
    exit 1
fi
echo "$attempt" >"$slurm/attempts/$name"
log=$slurm/logs/$name.$attempt.log
exec 3>&1 >"$log" 2>&1
echo "$name, attempt $attempt, job $SLURM_JOB_ID on $(hostname), $(date)"

# Before the time limit Slurm sends USR1, on preemption TERM. Both are forwarded as TERM, on which the command saves.
stopped=0
pid=
trap 'stopped=1; [[ -z $pid ]] || kill -TERM "$pid"' USR1 TERM

source .venv/bin/activate

# One process on one GPU.
python -m "${command[@]}" &
pid=$!

if ((stopped)); then
    kill -TERM "$pid" # the signal came before the command
fi
while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" # a signal ends wait, not the command
done
wait "$pid"
status=$?

interrupted=0
if ((status != 0)); then
    if ((stopped || status == 75)) || grep -qs '"status": "interrupted"' "$directory/run.json"; then
        interrupted=1
    fi
fi
# A stopped task is requeued and continues later, unless Slurm has already ended the job itself.
if ((interrupted && attempt < 5)) && [[ ! -e $slurm/cancelled ]]; then
    own="$SLURM_JOB_ID"
    if ! state=$(squeue --noheader --jobs="$own" --format=%T) || [[ $state == RUNNING ]]; then
        echo "$name was stopped in attempt $attempt and is requeued" >&3
        trap - USR1 TERM
        if scontrol requeue "$own"; then
            sleep 60 # until Slurm ends this attempt
        else
            echo "Slurm refused; if it always does, set requeue: false in the cluster's settings" >&3
        fi
    fi
fi
if ((status != 0)); then
    {
        echo "$name ended with status $status in attempt $attempt; the end of $log:"
        tail -n 15 "$log"
    } >&3
fi
exit "$status"
