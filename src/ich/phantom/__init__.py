"""A synthetic head-CT competition: whole heads with bleeds, in the file layout of RSNA 2019.

`anatomy` and `face` describe one patient's head by implicit shapes (`shapes`) on the planes of a series (`frame`).
`bleeds` draws anatomically plausible bleeds, `lesions` shapes them, and `lookalikes` adds other findings. `tissue`
fills slices of finite thickness with Hounsfield units, and `scanner` adds its geometry, noise and artifacts. `study`
makes one scan; `competition` plans all of them and writes their files and labels.
"""
