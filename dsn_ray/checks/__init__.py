"""What can be wrong in a cluster file, found without a cloud and without starting anything.

faults.py    what every check shares
launcher.py  files of `ray up`
aws.py       what they say of AWS
kuberay.py   Kubernetes manifests for the KubeRay operator
slurm.py     batch scripts
"""
