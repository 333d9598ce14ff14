"""A synthetic head-CT competition: whole heads with bleeds, scanned and written as RSNA 2019 lays its files out.

One patient's head is made of implicit shapes in millimetres (`anatomy`, `face`, on the primitives of `shapes`).
Bleeds are drawn (`bleeds`) and shaped (`lesions`) where anatomy allows them, with `lookalikes` beside them. Slices of
finite thickness are filled with Hounsfield units (`tissue`), and a `scanner` adds its geometry, noise and artefacts.
`study` puts one scan together, `competition` plans all of them and writes files and labels.
"""
