"""SePT in verl 0.9.1, by three of its public registries, no fork. With this folder on PYTHONPATH:

VERL_USE_EXTERNAL_MODULES=sept_verl python -m verl.trainer.main_ppo \\
    $(python -c 'from sept_verl import *; print(*OVERRIDES)') data.train_files=... and so on
"""

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss

ACTOR = """policy_loss.loss_mode=sept loss_agg_mode=token-mean use_kl_loss=false entropy_coeff=0"""
ROLLOUT = """temperature=1.0 top_k=-1 top_p=1.0 n=1 agent.default_agent_loop=sept"""
REST = """algorithm.adv_estimator=sept algorithm.use_kl_in_reward=false critic.enable=false
trainer.val_before_train=false trainer.test_freq=-1 +actor_rollout_ref.rollout.custom.tau_s=0.6"""
REWARD = [f"reward.custom_reward_function.path={__file__}", "reward.custom_reward_function.name=no_reward"]
OVERRIDES = [f"actor_rollout_ref.actor.{o}" for o in ACTOR.split()] + REST.split() + REWARD
OVERRIDES += [f"actor_rollout_ref.rollout.{o}" for o in ROLLOUT.split()]


@register_adv_est("sept")
def every_answer_alike(token_level_rewards, response_mask, **_):
    return response_mask.float(), response_mask.float()


@register_policy_loss("sept")  # log_prob comes at rollout.temperature, which therefore is tau_t
def minus_log_p(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, **_):
    return agg_loss(-log_prob, response_mask, loss_agg_mode, **config.global_batch_info), {}


@register("sept")  # so tau_s is set where the engine is asked
class DrawAtTauS(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        tau_s = self.rollout_config.custom["tau_s"]
        return await super().run({**sampling_params, "temperature": tau_s}, **kwargs)


def no_reward(data_source, solution_str, ground_truth, extra_info=None):
    return 0.0
