"""The keys of a config and their meanings.

Every key can be set in a config file and on the command line: `--config.model.sigma_max=7.5`,
`--config.model.ch_mult="(1,2,2)"`. Some configs do not sample during evaluation:
`--config.eval.enable_sampling=True` turns sampling on. `configs/rules.py` lists the values that
each key may have, `configs/defaults.py` the defaults, `configs/families.py` the settings of data
sets, SDEs and networks.

seed, device              random seed; device ('cuda:0', 'mps', 'cpu'); with torchrun each process
                          gets its own GPU
force_config              accept a config that does not match the trained model, with a warning for
                          each key (flag --force_config)
timeout_minutes           several processes: if one waits longer than this for the others, all of
                          them stop with an error

data.
  dataset                 CIFAR10, SVHN, CELEBA, LSUN (through TensorFlow Datasets), MNIST,
                          FashionMNIST (through torchvision), FFHQ, CelebAHQ (TFRecord files),
                          FOLDER (your own images), NPZ (your own array), DIGITS (included); upper
                          or lower case; or 'tfds:NAME', any data set of TensorFlow Datasets with
                          images and the splits train and test
  source                  'tfds' or 'torchvision' (CIFAR10, SVHN, MNIST, FashionMNIST, CELEBA; needs
                          no TensorFlow); '': as listed above
  image_size              side of the square images, in pixels; num_channels: 3 for RGB
  random_flip             mirror half of the training images at random
  centered                networks see pixels in [-1, 1] (VP, sub-VP) rather than in [0, 1] (VE)
  uniform_dequantization  pixels are (level + u) / levels with u uniform in [0, 1), instead of level
                          / (levels - 1)
  memory_gib              data sets up to this size in GiB are decoded once and kept in memory;
                          larger ones are decoded on the fly
  on_error                corrupt image: stop with an error ('raise'), or skip and count it
                          ('skip'); both report its file and position
  path                    FOLDER: folder or zip file of images (png, jpg, webp, avif, bmp, tif,
                          gif); sub-folders are classes, and train/ and test/ above them are splits.
                          NPZ: file with the arrays 'x_train', 'y_train', 'x_test', 'y_test', or
                          'images', 'labels'. torchvision: folder of its files, which are downloaded
                          if they are missing; '' is $TORCH_HOME/datasets, by default
                          ~/.cache/torch/datasets
  levels                  FOLDER and NPZ: number of grey levels (white is levels - 1), e.g. 4096 for
                          12 bits in 16-bit files; 0: as in the file
  layout                  NPZ: order of the axes, 'NHWC', or 'NCHW' (channels first)
  test_fraction           FOLDER and NPZ without a test set: fraction held out for testing; 0.0:
                          test on the training images
  fit                     FOLDER, tfds:NAME: 'crop': center-crop to a square and resize; 'exact':
                          every image must have image_size
  tfds_dir                folder of TensorFlow Datasets; '' is that package's own default
  category                LSUN only: 'bedroom', 'church_outdoor'
  tfrecords_path          FFHQ and CelebAHQ only: one TFRecord file of the resolution to train on;
                          replace the path of the 2021 release by your own

training.
  sde                     'vesde', 'vpsde' or 'subvpsde'
  continuous              True: t uniform between eps and T (Eq. 7). False: the num_scales noise
                          levels of SMLD or DDPM
  likelihood_weighting    weight the loss with g(t)^2 instead of std(t)^2: better bits/dim, worse
                          FID; continuous training only
  reduce_mean             loss of an image: mean over its pixels (True) or half their sum (False)
  batch_size              images per step, over all GPUs together
  accumulation            gradient accumulation: micro-batches per step on each GPU; less memory,
                          same results
  recompute               U-Nets: activation checkpointing (recompute each block in the backward
                          pass); less memory, more time
  precision               'float32', or 'bfloat16' for convolutions and matrix products (autocast);
                          parameters and losses remain float32. bfloat16 suits GPUs, and CPUs with
                          AVX512-BF16 or AMX; other CPUs are far slower with it. With float32 on
                          NVIDIA GPUs since Ampere, PyTorch rounds the factors of convolutions to
                          TF32 (errors of 1e-3) unless torch.backends.cudnn.allow_tf32 is False
  channels_last           channels-last memory format; affects only speed and rounding
  compile                 torch.compile the network (takes a minute or two; on a CPU it needs a C++
                          compiler); affects speed and rounding
  n_iters                 optimizer steps; the last step is always saved as a numbered checkpoint
  snapshot_freq           steps between numbered checkpoints (snapshots): checkpoint_7 is step 7 *
                          snapshot_freq
  snapshot_freq_for_preemption  steps between saves of the checkpoint to resume from; the previous
                          one is kept too
  keep_checkpoints        how many numbered checkpoints to keep (the latest ones); 0: all
  max_bad_steps           stop training after this many consecutive steps with non-finite gradients
                          (each is skipped); 0: never
  snapshot_sampling       draw a batch of samples at each numbered checkpoint
  log_freq, eval_freq     steps between logged training losses, and between evaluation losses (one
                          batch each)

optim.
  optimizer               'Adam': lr (peak learning rate), beta1, eps, weight_decay (L2), amsgrad
  warmup                  steps over which the learning rate rises linearly from 0; 0: none
  grad_clip               maximum norm of the whole gradient; negative: no clipping

model.
  name                    'ncsnpp' (also for DDPM++), 'ddpm', 'ncsn', 'ncsnv2_64', 'ncsnv2_128',
                          'ncsnv2_256'; 'wideresnet', a classifier of noisy images
  ema_rate                decay per step of the EMA weights, which are used for sampling; 0.0: no
                          EMA
  sigma_min, sigma_max    VE: std of the noise at t = 0 and t = 1, in units of data in [0, 1].
                          sigma_max should be near the largest Euclidean distance between two
                          training images (Song & Ermon 2020, Technique 1)
  beta_min, beta_max      VP, sub-VP: noise rate beta(t) at t = 0 and t = 1
  num_scales              N, the noise levels of discrete training and the steps of a
                          predictor-corrector sampler
  dropout                 probability of dropping an activation in training
  scale_by_sigma          divide the output by sigma: the network then predicts noise of unit size
                          (VE)
  conditional             condition the network on the noise level
  num_classes             U-Nets: number of classes to condition on, labels 0 .. num_classes - 1; 0:
                          unconditional. wideresnet: classes to predict
  label_dropout           fraction of training images whose label is dropped, for classifier-free
                          guidance
  embedding_type          embedding of the noise level: 'fourier' (random features of log sigma;
                          fourier_scale: std of their frequencies) or 'positional'; ddpm is always
                          positional
  nf, ch_mult             channels at full resolution; channel multiplier at each resolution, each
                          half the previous one
  widen                   wideresnet: channel multiplier for all resolutions, 10 for the "28-10"
                          network
  num_res_blocks          residual blocks at each resolution; attn_resolutions: resolutions, in
                          pixels, with attention blocks
  normalization           'GroupNorm' or 'InstanceNorm++'; nonlinearity: 'swish', 'elu', 'relu',
                          'lrelu'
  up_attention            U-Nets, decoder: attention after the last block of each 'level', or after
                          every 'block' (code of Ho et al.)
  groups                  ddpm: groups of each GroupNorm; attn_groups: NCSN++: groups of the
                          GroupNorms around attention (diffusers: 32); 0: min(channels / 4, 32), as
                          in all other GroupNorms of NCSN++
  attn_head_dim           channels per attention head; 0: a single head, as in the 2021 release
  center_input            U-Nets: map images in [0, 1] (data.centered=False) to [-1, 1] inside the
                          network
  resamp_with_conv        add a convolution to every down- and upsampling
  fir, fir_kernel         NCSN++: resample with this anti-aliasing filter, instead of nearest
                          neighbour and mean pooling
  skip_rescale            NCSN++: divide the sum of each skip connection by sqrt(2)
  resblock_type           NCSN++: 'biggan' (resampling inside the blocks) or 'ddpm' (separate
                          resampling layers)
  progressive             NCSN++: output built up over the resolutions: 'none', 'output_skip',
                          'residual'
  progressive_input       NCSN++: image fed in at each resolution: 'none', 'input_skip', 'residual'
  progressive_combine     NCSN++: how 'input_skip' joins: 'sum' or 'cat'
  init_scale              NCSN++: scale of the initial weights of each block's last layer; 0.0:
                          blocks begin as identities
  interpolation           NCSN, NCSNv2: how the decoder enlarges maps: 'bilinear'
  attention_type, conv_size  only 'ddpm' and 3 were ever implemented

sampling.
  method                  'pc' (predictor-corrector); 'ode' (probability flow, adaptive solver);
                          'adaptive' (reverse SDE, step size adapted per image); few-step solvers:
                          'ddim', 'heun', 'dpm_solver', 'dpmpp_2m', 'dpmpp_2m_sde', 'unipc'
  predictor               'euler_maruyama', 'reverse_diffusion', 'ancestral_sampling' or 'none': one
                          step to the next noise level
  corrector               'langevin' (Algorithms 4, 5), 'ald' (annealed Langevin dynamics, step 2
                          (snr sigma)^2) or 'none'
  order                   'corrector_predictor', as in the 2021 release, or 'predictor_corrector',
                          as in Algorithm 1 of the paper
  n_steps_each            corrector steps at each noise level
  snr                     r, signal-to-noise ratio that sets the step size of the corrector; unused
                          without a corrector
  probability_flow        the predictor follows the ODE, without noise
  steps                   steps of 'pc' and of solvers ('dpm_solver': network evaluations); 0:
                          num_scales for 'pc', 18 for 'heun', 36 for other solvers
  skip_type               time grid: uniform in t ('time_uniform'), in sqrt(t) ('time_quadratic') or
                          in log-SNR ('logSNR'), or the grid of Karras et al. 2022 ('karras', with
                          rho); '': the default of each method
  rho                     'karras': larger values place more steps at low noise
  eta                     'ddim': 0.0 follows the ODE, 1.0 is ancestral sampling
  churn                   'heun': amount of added noise, S_churn in Karras et al. 2022; 0.0: none
  dpm_solver_order        'dpm_solver': 1, 2 or 3; 'unipc': 1 to 6
  thresholding            solvers: dynamic thresholding, keeps image estimates in range under strong
                          guidance
  ode_method              'ode': 'dopri5', 'bosh3' or 'dopri8' on the device, or a SciPy method on
                          the CPU, such as 'RK45'
  rtol, atol              tolerances of 'ode' (0.0: 1e-5) and 'adaptive' (0.0: 0.05, and 1/256 in
                          units of network input)
  prior_mean              mean of the prior, in units of network input
  seed_per_image          separate random numbers (and Langevin step sizes) for each image, so that
                          it does not depend on the other images, the batch size or the number of
                          GPUs ('ode': up to the tolerances)
  noise_removal           leave out the noise of the last step; solvers and 'adaptive': end with a
                          denoising step
  round                   round samples to 8-bit values
  guidance                guidance scale w. Class-conditional networks: (1 - w) s(x, t) + w s(x, t,
                          class); 1.0: conditional, 0.0: unconditional, larger: stronger guidance,
                          less variety. With a classifier: factor of its gradient

control. (--mode control)
  images                  number of test images to use if --input is not given
  results                 number of results per image, or per class
  resample, jump          repeat every `jump` steps `resample` times (RePaint), so that new and
                          known parts match better
  consistency             weight of guidance towards the measurement; 0.0: none. It triples the time
                          per step
  blur                    deblur: standard deviation of the Gaussian, in pixels
  steps                   interpolate: number of codes from one image to the next, both included
  temperatures            temper: scale factors of the codes
  rtol, atol              latent codes: tolerances of sampling.ode_method, used unless
                          sampling.method is a fixed-step solver

eval.
  begin_ckpt, end_ckpt    first and last numbered checkpoint to evaluate (missing ones: see
                          wait_minutes); batch_size: images per batch
  enable_loss             loss over the test set
  enable_sampling         draw num_samples images, and compute the metrics of metrics_backend
  enable_bpd              bits/dim of bpd_dataset ('train' or 'test'); class-conditional networks
                          are evaluated without a class
  most_images             compute loss and bits/dim on at most this many images, drawn at random; 0:
                          all
  bpd_repeats             passes over bpd_dataset, each with new dequantization noise
  bpd_probes              random vectors averaged in each estimate of the divergence; more: less
                          variance, more time
  bpd_method              ODE solver for bits/dim, see sampling.ode_method; bpd_rtol, bpd_atol: its
                          tolerances
  wait_minutes            how long to wait for each missing checkpoint; 0.0: skip it
  metrics_backend         features used by the metrics (FID, KID, precision, recall, IS): 'tfgan',
                          Inception by TF-GAN as in the paper (on the CPU); 'torch_fidelity', the
                          same weights or another network in PyTorch on `device`; 'pixels', no
                          network, for small images; 'none', no metrics
  inception_path          weights of Inception, if they cannot be downloaded: a SavedModel folder
                          (tfgan) or a .pth file (torch_fidelity)
  extractor, features     torch_fidelity: 'inception-v3-compat' with features '64', '192', '768',
                          '2048' (default), 'vgg16', 'clip-...', 'dinov2-...'; features '' is the
                          usual layer of the network
  stats_split             split of the data that samples are compared with: 'train' or 'test'
  stats_samples           maximum number of images of stats_split to use, drawn at random
  stats_dir               folder of the reference statistics; '' is assets/stats
  metrics_floor           also compute the metrics between the two splits of the real images, as a
                          reference value
  is_splits               number of parts over which the Inception score is averaged; 1 as in the
                          2021 release
"""
