"""A synthetic head-CT competition: whole heads with bleeds, scanned and written as RSNA 2019 lays its files out.

One patient's head is made of implicit shapes in millimetres (`anatomy`, `face`, on the primitives of `shapes`), bleeds and
look-alikes are put where anatomy allows them (`bleeds`, `lookalikes`), slices of finite thickness are filled with Hounsfield
units (`tissue`), a scanner adds its geometry, noise and artefacts (`scanner`), and `competition` writes files and labels.
"""
