"use strict";
window.studyViewer = (root, data) => {};
