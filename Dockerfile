# One image for every entrypoint: `tiergrid global`, `tiergrid local`, `tiergrid worker mock`.
FROM node:20-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
# Installing compiles the fast core.
COPY scripts/build-core.mjs scripts/build-program.mjs ./scripts/
COPY assembly ./assembly
RUN npm ci --no-audit --no-fund
COPY . .
RUN npm run build && npm prune --omit=dev

FROM node:20-bookworm-slim
WORKDIR /app
ENV NODE_ENV=production DYN_LOGGING_JSONL=1
COPY --from=build /app/node_modules ./node_modules
COPY --from=build /app/dist ./dist
COPY --from=build /app/package.json /app/LICENSE ./
COPY --from=build /app/schemas ./schemas
COPY --from=build /app/models ./models
COPY --from=build /app/pool-configs ./pool-configs
USER 65532:65532
ENTRYPOINT ["node", "dist/cli/main.js"]
CMD ["--help"]
