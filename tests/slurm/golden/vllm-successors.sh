#!/bin/bash
# Trains the arms.
# Written by slurm.launch, which submits it with its dependencies; by hand: sbatch 'outputs/a study/slurm/1/scripts/train.sh'
#SBATCH --job-name='a study/train'
#SBATCH --chdir='/home/me/frankenstein suite'
#SBATCH --account='lab 7'
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:h100:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=960G
#SBATCH --time=1-00:00:00
#SBATCH --no-requeue
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

# Jobs may not requeue themselves here: successors of this one wait in the queue. An ended task is not started again.
if [[ -e $slurm/ended/$name ]]; then
    exit "$(<"$slurm/ended/$name")"
fi

# Each attempt has its own log; file descriptor 3 is the output shared by all attempts.
attempt=1
if [[ -e $slurm/attempts/$name ]]; then
    attempt=$(($(<"$slurm/attempts/$name") + 1))
fi
if ((attempt > 3)); then
    echo "$name was started 3 times; the end of its last log:"
    tail -n 15 "$slurm/logs/$name.3.log"
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

# The first 2 of this node's GPUs belong to a vLLM server, the others to the processes that train.
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-0,1,2,3,4,5,6,7}"
server_gpus=$(IFS=,; echo "${gpus[*]:0:2}")
training_gpus=$(IFS=,; echo "${gpus[*]:2}")
port=$((20000 + SLURM_JOB_ID % 10000))
CUDA_VISIBLE_DEVICES=$server_gpus VLLM_SERVER_DEV_MODE=1 apptainer exec --nv 'a b.sif' vllm serve 'outputs/a study/sft' \
    --port "$port" --tensor-parallel-size 2 --max-model-len 6144 \
    >"$slurm/logs/$name.$attempt.vllm.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null' EXIT
until curl --silent --fail --output /dev/null "http://localhost:$port/health"; do
    if ((stopped)); then
        break
    fi
    if ! kill -0 "$server" 2>/dev/null; then
        echo "$name: vLLM ended before it was ready; see $slurm/logs/$name.$attempt.vllm.log" >&3
        echo 1 >"$slurm/ended/$name"
        exit 1
    fi
    sleep 5
done

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=595 # gives the processes time to save
CUDA_VISIBLE_DEVICES=$training_gpus apptainer exec --nv 'a b.sif' accelerate launch --config_file configs/accelerate/8gpu.yaml \
    --num_processes 6 --main_process_port 0 -m "${command[@]}" \
    --use_vllm true --vllm_mode server --vllm_server_base_url "http://localhost:$port" &
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
# A stopped task is continued by a successor; a task that ended, successfully or not, is not started again.
if ((!interrupted || attempt == 3)); then
    echo "$status" >"$slurm/ended/$name"
fi
if ((status != 0)); then
    {
        echo "$name ended with status $status in attempt $attempt; the end of $log:"
        tail -n 15 "$log"
    } >&3
fi
exit "$status"
